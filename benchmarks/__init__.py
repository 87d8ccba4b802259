"""One script a question: kdscale beside its peers, and the assets that they need."""
