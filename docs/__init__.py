"""The pages of the documentation; `figures` makes their figures and their tables of layers."""
