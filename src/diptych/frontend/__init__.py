"""The HTTP side: OpenAI's API for text in front of any `RequestService`. First and last step of a request's life."""
