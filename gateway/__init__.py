"""Pareta Gateway: the inference gateway and metering proxy."""
