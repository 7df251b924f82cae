"""From a model that was trained elsewhere to a sealed run."""
