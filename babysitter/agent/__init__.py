"""The node agent: the babysitters' landlord, who makes replicas when asked and outlives none of them."""
