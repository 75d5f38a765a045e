"""The platform's routes as the control process answers them; workers let the callers in."""
