"""Functions as the engine calls them: columns in, columns out, whatever backend runs the guest."""
