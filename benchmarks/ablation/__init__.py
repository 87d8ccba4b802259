"""One teacher's distributions over one corpus, kept in many ways, and students of each."""
