"""Operations of the networks, one folder each: contract, readable reference, implementations, derivation."""
