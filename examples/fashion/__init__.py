"""Two really trained diffusion transformers of clothes, by noise prediction and by flow matching, and their judge."""
