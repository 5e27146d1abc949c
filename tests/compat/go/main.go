// franz-go: one round trip with the client's default settings. See ../README.md.
package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const records = 10_000

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}

func check(what string, err error) {
	if err != nil {
		fail("%s: %v", what, err)
	}
}

func key(seq int) string   { return fmt.Sprintf("k%d", seq%97) }
func value(seq int) string { return fmt.Sprintf("%d:", seq) + strings.Repeat("drave ", seq*31%40) }

func codec(name string) kgo.CompressionCodec {
	switch name {
	case "none":
		return kgo.NoCompression()
	case "gzip":
		return kgo.GzipCompression()
	case "snappy":
		return kgo.SnappyCompression()
	case "lz4":
		return kgo.Lz4Compression()
	case "zstd":
		return kgo.ZstdCompression()
	}
	fail("unknown compression %q", name)
	panic("unreachable")
}

func produce(ctx context.Context, bootstrap, topic, compression string) {
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(bootstrap, ",")...), kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(codec(compression)))
	check("producer", err)
	defer client.Close()
	for seq := range records {
		client.Produce(ctx, &kgo.Record{Key: []byte(key(seq)), Value: []byte(value(seq))}, func(_ *kgo.Record, err error) {
			check("produce", err)
		})
	}
	check("flush", client.Flush(ctx))
}

// consume reads `wanted` records, commits exactly what was read, and leaves.
func consume(ctx context.Context, bootstrap, topic string, wanted int, seen map[int32][]int, positions map[int32]int64) {
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(bootstrap, ",")...), kgo.ConsumeTopics(topic), kgo.ConsumerGroup("group-"+topic),
		kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	check("consumer", err)
	var read []*kgo.Record
	for len(read) < wanted {
		fetches := client.PollRecords(ctx, wanted-len(read))
		if errs := fetches.Errors(); len(errs) > 0 {
			fail("after %d of %d records: %v", len(read), wanted, errs)
		}
		for _, record := range fetches.Records() {
			if record.Offset != positions[record.Partition] {
				fail("partition %d: offset %d where %d was due", record.Partition, record.Offset, positions[record.Partition])
			}
			positions[record.Partition]++
			text, _, _ := strings.Cut(string(record.Value), ":")
			seq, err := strconv.Atoi(text)
			check("value", err)
			if string(record.Key) != key(seq) || string(record.Value) != value(seq) {
				fail("record %d came back changed", seq)
			}
			seen[record.Partition] = append(seen[record.Partition], seq)
			read = append(read, record)
		}
	}
	check("commit", client.CommitRecords(ctx, read...))
	client.Close()
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "write" {
		write(os.Args[2], os.Args[3], os.Args[4])
		return
	}
	bootstrap, topic, compression := os.Args[1], os.Args[2], os.Args[3]
	partitions, err := strconv.Atoi(os.Args[4])
	check("partitions", err)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()

	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(bootstrap, ",")...))
	check("admin", err)
	_, err = kadm.NewClient(client).CreateTopic(ctx, int32(partitions), -1, nil, topic)
	check("create topic", err)
	client.Close()

	produce(ctx, bootstrap, topic, compression)
	seen, positions := map[int32][]int{}, map[int32]int64{}
	half := records/2 + 123
	consume(ctx, bootstrap, topic, half, seen, positions)
	consume(ctx, bootstrap, topic, records-half, seen, positions)

	var all []int
	for partition, seqs := range seen {
		if !slices.IsSorted(seqs) {
			fail("partition %d came back out of order", partition)
		}
		all = append(all, seqs...)
	}
	slices.Sort(all)
	for seq := range records {
		if len(all) != records || all[seq] != seq {
			fail("records are missing or came twice")
		}
	}
}
