"""One small adapter per family of Hugging Face encoders: how that family is cut into layers."""
