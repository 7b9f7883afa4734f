"""The tests; a package, so that tests/modeling is never taken for the package `modeling`."""
