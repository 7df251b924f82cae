"""Collections of movie vectors: what one is (contract), and where they are kept."""
