package main

import "hash/fnv"

// hashedID returns the number that stands for a text in a model trained with --hash-ids.
func hashedID(text string) float64 {
	h := fnv.New64a()
	h.Write([]byte(text))
	return float64(h.Sum64() & (1<<53 - 1))
}
