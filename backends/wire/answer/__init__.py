"""What becomes of an engine's raw text: characters, stop texts, reasoning, tool calls, OpenAI answers."""
