"""Define the contract's promises, and the page of servers."""
