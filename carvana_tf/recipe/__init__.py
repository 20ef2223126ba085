"""One file that says what is trained and how it is combined, and what carries it out."""
