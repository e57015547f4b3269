"""Events of a run from polls of the server. Below `client/`: it knows a run by a protocol only."""
