"""The intermediate representation: types, scalar expressions, statements, printer, verifier."""
