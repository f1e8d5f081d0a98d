"""The controller: services that translate, duties that make one pass at a time, and the server that composes them."""
