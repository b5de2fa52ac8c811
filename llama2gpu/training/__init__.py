"""Training of small Llamas and their tokenizers, from text files to a Hugging Face folder."""
