"""librdkafka, by confluent-kafka: one round trip with the client's default settings. See ../README.md."""
import sys
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

RECORDS = 10_000


def key(seq):
    return b"k%d" % (seq % 97)


def value(seq):
    return b"%d:" % seq + b"drave " * (seq * 31 % 40)


def produce(bootstrap, topic, compression):
    producer = Producer({"bootstrap.servers": bootstrap, "compression.type": compression})
    failures = []
    acked = []

    def delivered(error, message):
        if error:
            failures.append(error)
        else:
            acked.append((message.partition(), message.offset()))

    for seq in range(RECORDS):
        while True:
            try:
                producer.produce(topic, value(seq), key(seq), on_delivery=delivered)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    left = producer.flush(60)
    if left or failures:
        sys.exit(f"{left} records not delivered, {len(failures)} failed, first: {failures[:1]}")
    if len(set(acked)) != RECORDS:
        sys.exit(f"{len(set(acked))} different offsets acknowledged for {RECORDS} records")


def consume(bootstrap, topic, group, wanted, seen, positions):
    """Reads `wanted` records, commits exactly what was read, and leaves."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    got = 0
    silent = 0
    while got < wanted:
        message = consumer.poll(1.0)
        if message is None:
            silent += 1
            if silent > 60:
                sys.exit(f"no record for 60 s after {got} of {wanted}")
            continue
        silent = 0
        if message.error():
            raise KafkaException(message.error())
        partition = message.partition()
        if message.offset() != positions.get(partition, 0):
            sys.exit(f"partition {partition}: offset {message.offset()} where {positions.get(partition, 0)} was due")
        positions[partition] = message.offset() + 1
        seq = int(message.value().split(b":")[0])
        if message.key() != key(seq) or message.value() != value(seq):
            sys.exit(f"record {seq} came back changed")
        seen.setdefault(partition, []).append(seq)
        got += 1
    consumer.commit(offsets=[TopicPartition(topic, p, o) for p, o in positions.items()], asynchronous=False)
    consumer.close()


def main():
    bootstrap, topic, compression, partitions = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, partitions)])[topic].result(30)
    produce(bootstrap, topic, compression)
    seen, positions = {}, {}
    half = RECORDS // 2 + 123
    consume(bootstrap, topic, f"group-{topic}", half, seen, positions)
    consume(bootstrap, topic, f"group-{topic}", RECORDS - half, seen, positions)
    for partition, seqs in seen.items():
        if seqs != sorted(seqs):
            sys.exit(f"partition {partition} came back out of order")
    if sorted(seq for seqs in seen.values() for seq in seqs) != list(range(RECORDS)):
        sys.exit("records are missing or came twice")


main()
