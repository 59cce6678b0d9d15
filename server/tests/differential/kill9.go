package main

func runKills(opt options, seed uint64, rounds int) error { return nil }
