"""`make mutants`: do the tests notice a small mistake in the package?

:mod:`.changes` finds the mistakes that can be made, :mod:`.sample` draws some of them, :mod:`.choice`
says which tests are about a line, :mod:`.trial` runs tests in a copy of the checkout, and
:mod:`.__main__` puts these together and reports.
"""
