package main

import (
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

const (
	sequenceDigits = 16
	checksumDigits = 8
	// valueBytesMin is the shortest value that carries a sequence number and a checksum.
	valueBytesMin = sequenceDigits + checksumDigits
)

// keyName is the key with the given number, of the given length: 8 digits are enough for 100 million.
func keyName(number, length int) string {
	return fmt.Sprintf("%0*d", length, number)
}

// encodeValue makes a value that proves itself: the sequence number, filler up to length, and a checksum
// over the key and all that goes before. A value under the wrong key, cut short, or mixed from two writes
// does not decode.
func encodeValue(key string, sequence uint64, length int) string {
	var b strings.Builder
	b.Grow(length)
	fmt.Fprintf(&b, "%0*x", sequenceDigits, sequence)
	for filler := length - valueBytesMin; filler > 0; filler-- {
		b.WriteByte('a' + byte((sequence+uint64(filler))%26))
	}
	fmt.Fprintf(&b, "%0*x", checksumDigits, checksum(key, b.String()))
	return b.String()
}

// decodeValue returns the sequence number that the value carries.
func decodeValue(key, value string) (uint64, error) {
	if len(value) < valueBytesMin {
		return 0, fmt.Errorf("value of key %s has only %d bytes", key, len(value))
	}
	body, sum := value[:len(value)-checksumDigits], value[len(value)-checksumDigits:]
	if want := fmt.Sprintf("%0*x", checksumDigits, checksum(key, body)); sum != want {
		return 0, fmt.Errorf("value of key %s has checksum %s, not %s", key, sum, want)
	}
	return strconv.ParseUint(body[:sequenceDigits], 16, 64)
}

func checksum(key, body string) uint32 {
	return crc32.Update(crc32.ChecksumIEEE([]byte(key)), crc32.IEEETable, []byte(body))
}
