"""What the documentation is made with: code blocks that run, pictures of them, the gallery, the reference."""
