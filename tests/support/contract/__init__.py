"""The promises of the contract, and the page that says which server keeps them."""
