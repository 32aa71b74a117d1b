"""Stand-ins for a proprietary program: wheels under the names of the contract, and the index that serves them."""
