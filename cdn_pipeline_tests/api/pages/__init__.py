"""The pages: what they answer, and what a person in a browser sees and does."""
