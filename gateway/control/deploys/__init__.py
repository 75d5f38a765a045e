"""Endpoints that customers deploy: what they want, what is there, and the loop that brings the one to the other."""
