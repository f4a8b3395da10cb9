"""The endpoints, one module for each family of URLs. Route modules do not import each other."""
