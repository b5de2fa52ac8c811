"""HTTP: OpenAI's API, llama.go's jobs and Prometheus' metrics over one engine."""
