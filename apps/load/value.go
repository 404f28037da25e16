package main

import (
	"hash/crc32"
	"strconv"
)

const (
	sequenceDigits = 16
	checksumDigits = 8
	// valueBytesMin is the shortest value that carries a sequence number and a checksum.
	valueBytesMin = sequenceDigits + checksumDigits

	hexDigits = "0123456789abcdef"
)

// keyName is the key with the given number, of the given length.
func keyName(number, length int) string {
	digits := strconv.Itoa(number)
	name := make([]byte, 0, max(length, len(digits)))
	for range length - len(digits) {
		name = append(name, '0')
	}
	return string(append(name, digits...))
}

// encodeValue makes a value that proves itself, in the form of apps/kv: the sequence number, filler up to length,
// and a checksum over the key and all that goes before.
func encodeValue(key string, sequence uint64, length int) string {
	value := appendHex(make([]byte, 0, length), sequence, sequenceDigits)
	for filler := length - valueBytesMin; filler > 0; filler-- {
		value = append(value, 'a'+byte((sequence+uint64(filler))%26))
	}
	return string(appendHex(value, uint64(checksum(key, value)), checksumDigits))
}

func appendHex(text []byte, number uint64, digits int) []byte {
	for shift := 4 * (digits - 1); shift >= 0; shift -= 4 {
		text = append(text, hexDigits[number>>shift&15])
	}
	return text
}

// shortValue is what stands for a value in a history: its sequence number. One that does not prove itself stands
// for itself, and is not intact.
func shortValue(key, value string) (short string, isIntact bool) {
	if len(value) < valueBytesMin {
		return value, false
	}
	body, sum := value[:len(value)-checksumDigits], value[len(value)-checksumDigits:]
	if got, err := strconv.ParseUint(sum, 16, 32); err != nil || uint32(got) != checksum(key, []byte(body)) {
		return value, false
	}
	return body[:sequenceDigits], true
}

func checksum(key string, body []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE([]byte(key)), crc32.IEEETable, body)
}
