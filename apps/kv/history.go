package main

import (
	"math"
	"slices"
)

// history judges what was read against what was written: the valid-prefix property. Each client writes one
// request at a time, so at every instant the server holds all of its writes up to some sequence number and
// none after it; after a failover that number may have gone back, and nothing else may have changed.
type history struct {
	first   uint64
	keys    map[string]*keyHistory
	clients map[int]*clientHistory
	verdict verdict
}

// verdict is what a verification prints. Lost writes may be lost if they were acknowledged after the limit.
type verdict struct {
	Acknowledged    int     `json:"acknowledged"`
	KeysChecked     int     `json:"keys_checked"`
	Lost            int     `json:"lost"`
	LostBeforeLimit int     `json:"lost_before_limit"`
	LostWindowMs    float64 `json:"lost_window_ms"`
	Corrupt         int     `json:"corrupt"`
	NeverWritten    int     `json:"never_written"`
	NotPrefix       int     `json:"not_prefix"`
	Resurrected     int     `json:"resurrected"`
	FirstLostWallNs int64   `json:"first_lost_wall_ns"`
	LastLostWallNs  int64   `json:"last_lost_wall_ns"`
	limit           int64
}

type keyHistory struct {
	writes []write
	lost   map[uint64]bool
}

// clientHistory is one round of reads of a client's keys with no write of its own in between.
type clientHistory struct {
	newest        uint64 // The newest write sent.
	roundNewest   uint64 // The newest write sent when this round began.
	auditedUpTo   uint64 // Writes up to here were judged together by an earlier round.
	lostOldest    uint64 // Of the writes that this round judges.
	presentNewest uint64 // Of the writes that this round judges; acknowledged ones only.
}

// acknowledged reports whether the write was answered. One that was not may arrive late, at whoever serves.
func (k *keyHistory) acknowledged(sequence uint64) bool {
	return slices.ContainsFunc(k.writes, func(w write) bool { return w.sequence == sequence && !w.acked.isZero() })
}

func newHistory(limit int64) *history {
	return &history{
		keys:    make(map[string]*keyHistory),
		clients: make(map[int]*clientHistory),
		verdict: verdict{limit: limit},
	}
}

func (v *verdict) valid() bool {
	return v.LostBeforeLimit+v.Corrupt+v.NeverWritten+v.NotPrefix+v.Resurrected == 0
}

func (h *history) client(number int) *clientHistory {
	c := h.clients[number]
	if c == nil {
		c = &clientHistory{lostOldest: math.MaxUint64}
		h.clients[number] = c
	}
	return c
}

func (h *history) addWrite(w write) {
	k := h.keys[w.key]
	if k == nil {
		k = &keyHistory{lost: make(map[uint64]bool)}
		h.keys[w.key] = k
	}
	k.writes = append(k.writes, w)
	h.client(w.client).newest = w.sequence
	if !w.acked.isZero() {
		h.verdict.Acknowledged++
	}
}

// beginAudit ends the round before and begins one in which every write since is judged together.
func (h *history) beginAudit(client int) {
	c := h.client(client)
	h.endRound(c)
	c.auditedUpTo, c.roundNewest = c.roundNewest, c.newest
	c.lostOldest, c.presentNewest = math.MaxUint64, 0
}

func (h *history) endRound(c *clientHistory) {
	if c.lostOldest < c.presentNewest {
		h.verdict.NotPrefix++
	}
}

// addFound judges one read: every acknowledged write to the key that is newer than what was found is lost.
func (h *history) addFound(client int, key string, sequence int64) {
	k := h.keys[key]
	if sequence == foundCorrupt {
		h.verdict.Corrupt++
		return
	}
	found := uint64(sequence)
	if k == nil || !h.plausible(k, found) {
		return
	}
	c := h.client(client)
	if k.acknowledged(found) {
		c.presentNewest = max(c.presentNewest, found)
	}
	for i := len(k.writes) - 1; i >= 0 && k.writes[i].sequence > found; i-- {
		h.markLost(c, k, k.writes[i])
	}
}

// plausible reports whether the value found may be there at all, and counts it if not.
func (h *history) plausible(k *keyHistory, found uint64) bool {
	if found < h.first {
		return true // From before this load, or never set.
	}
	for i := len(k.writes) - 1; i >= 0; i-- {
		if k.writes[i].sequence == found {
			if k.lost[found] {
				h.verdict.Resurrected++
			}
			return true
		}
	}
	h.verdict.NeverWritten++
	return false
}

func (h *history) markLost(c *clientHistory, k *keyHistory, w write) {
	if w.acked.isZero() || k.lost[w.sequence] {
		return
	}
	k.lost[w.sequence] = true
	v := &h.verdict
	v.Lost++
	if w.acked.wall < v.limit {
		v.LostBeforeLimit++
	}
	if w.sequence > c.auditedUpTo {
		c.lostOldest = min(c.lostOldest, w.sequence)
	}
	if v.FirstLostWallNs == 0 || w.acked.wall < v.FirstLostWallNs {
		v.FirstLostWallNs = w.acked.wall
	}
	v.LastLostWallNs = max(v.LastLostWallNs, w.acked.wall)
	v.LostWindowMs = float64(v.LastLostWallNs-v.FirstLostWallNs) / 1e6
}

// finish ends every client's last round.
func (h *history) finish() verdict {
	for _, c := range h.clients {
		h.endRound(c)
	}
	return h.verdict
}
