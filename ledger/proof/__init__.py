"""What shows that the money is right, to operators, accountants and auditors."""
