package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// write produces with the client's defaults (idempotent, acks=all, several requests in flight) but uncompressed, until
// its standard input ends, and writes a line "partition offset key" to `path` for every acknowledged record.
func write(bootstrap, topic, path string) {
	file, err := os.Create(path)
	check("file", err)
	var lock sync.Mutex
	acked := bufio.NewWriter(file)
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(bootstrap, ",")...), kgo.DefaultProduceTopic(topic), kgo.MaxBufferedRecords(2_000),
		kgo.ProducerBatchCompression(kgo.NoCompression()))
	check("producer", err)

	stop := make(chan struct{})
	go func() {
		defer close(stop)
		_, _ = bufio.NewReader(os.Stdin).ReadString(0)
	}()
	ctx := context.Background()
	for seq := 0; ; seq++ {
		select {
		case <-stop:
			deadline, cancel := context.WithTimeout(ctx, 60*time.Second)
			defer cancel()
			check("flush", client.Flush(deadline))
			check("file", acked.Flush())
			check("file", file.Close())
			client.Close()
			return
		default:
		}
		key := fmt.Sprintf("franz-%d", seq)
		client.Produce(ctx, &kgo.Record{Key: []byte(key), Value: make([]byte, 100)}, func(record *kgo.Record, err error) {
			check("produce "+key, err)
			lock.Lock()
			defer lock.Unlock()
			fmt.Fprintf(acked, "%d %d %s\n", record.Partition, record.Offset, key)
		})
		if seq%500 == 499 {
			time.Sleep(50 * time.Millisecond) // some 10,000 records a second: the raw writers are the load
		}
	}
}
