"""Evals: a customer's rows, and what models make of them."""
