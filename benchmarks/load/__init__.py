"""Load over real sockets against any OpenAI base URL."""
