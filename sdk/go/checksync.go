// Package checksync is what a program that CheckSync protects may say to its manager. No program has to.
package checksync
