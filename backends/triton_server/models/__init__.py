"""One module for each interface, with the class that Triton looks for. They run inside Triton only."""
