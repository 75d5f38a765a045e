"""The HTTP backend against a second real engine: llama.cpp's own server, with a tiny model of our making."""
