"""Metrics of endpoints: five dimensions, from what was really booked."""
