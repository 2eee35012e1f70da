"""From a request to its records: the grid of cells, where they run, and what one cell does there."""
