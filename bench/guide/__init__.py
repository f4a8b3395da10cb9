"""`python -m bench.guide`: Celeriac compared with a stand-in for the original guide's server, over HTTP."""
