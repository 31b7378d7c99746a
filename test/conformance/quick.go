package main

// quick is the subset that continuous integration runs: one or two specs of each
// part of the API, all short.
var quick = map[string]bool{}
