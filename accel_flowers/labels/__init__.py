"""Which labels of a data set look wrong: said by whoever never saw them, as a list, a CSV to edit and a page."""
