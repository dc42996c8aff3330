/* SPDX-License-Identifier: MIT
 *
 * bench_read_reply.c -- question: what would a cold GET cost a server that did nothing but what the
 * kernel has to do for it? One thread answers each request by one random direct read of a file and
 * then the same bytes: no parsing, no index, no checksum, no cache, no runtime of ours. It is the
 * bound of the row "cold" of bench/compare, as bench_fixed_reply is that of "get-1". Expected: less
 * than fio at as many reads under way, because some of the requests are always in the network or
 * wait for a turn instead of in the device (2 cores of AMD EPYC, virtual: 0.54 to 0.78 of fio with
 * 64 connections, from run to run; about 1 while something kept the processors from sleeping).
 *
 *     bench_read_reply PORT FILE [bytes of a read] [bytes of a GET's value]
 *     distkv-bench --server 127.0.0.1:PORT --workload get --connections 64 --cores 1
 *
 * What arrives at once counts as one request, so a client may have one under way on a connection,
 * and at most DESCRIPTORS_MAX connections. It ends with the process.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <liburing.h>

#include "base/prng.h"
#include "base/types.h"

#define DESCRIPTORS_MAX  1024u
#define READ_BYTES_MAX   8192u
#define INPUT_BYTES      512u
#define INPUTS           512u /* a power of two */
#define ENTRIES          1024u
#define LISTENER_BACKLOG 256

enum event { ACCEPTED, RECEIVED, READ, NOT_SENT };

static struct io_uring ring;
static struct io_uring_buf_ring *inputs;
static u8 *input_memory, *read_memory;
static char *reply;
static unsigned reply_bytes, read_bytes;
static u64 places;
static struct prng prng;

static void
die(const char *what)
{
    perror(what);
    exit(1);
}

static void *
memory(size_t bytes)
{
    void *made;
    if (posix_memalign(&made, 4096, bytes) != 0) die("posix_memalign");
    memset(made, 0, bytes);
    return made;
}

static struct io_uring_sqe *
entry(void)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    if (sqe == NULL) {
        io_uring_submit(&ring);
        sqe = io_uring_get_sqe(&ring);
        if (sqe == NULL) die("io_uring_get_sqe");
    }
    return sqe;
}

static void
tell(struct io_uring_sqe *sqe, enum event event, int fd)
{
    io_uring_sqe_set_data64(sqe, (u64)event << 32 | (u32)fd);
}

static void
start_receive(int fd)
{
    struct io_uring_sqe *sqe = entry();
    io_uring_prep_recv_multishot(sqe, fd, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = 0;
    tell(sqe, RECEIVED, fd);
}

static void
start_send(int fd, const char *bytes, unsigned count)
{
    struct io_uring_sqe *sqe = entry();
    io_uring_prep_send(sqe, fd, bytes, count, MSG_WAITALL);
    sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
    tell(sqe, NOT_SENT, fd);
}

static void
start_read(int fd)
{
    struct io_uring_sqe *sqe = entry();
    u64 place = prng_below(&prng, places) * read_bytes;
    io_uring_prep_read_fixed(sqe, 0, read_memory + (size_t)fd * READ_BYTES_MAX, read_bytes, place,
                             0);
    sqe->flags |= IOSQE_FIXED_FILE;
    tell(sqe, READ, fd);
}

static void
accepted(const struct io_uring_cqe *cqe)
{
    if (cqe->res < 0 || (cqe->flags & IORING_CQE_F_MORE) == 0) die("accept");
    if ((u32)cqe->res >= DESCRIPTORS_MAX) die("too many connections");
    int one = 1;
    setsockopt(cqe->res, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    start_receive(cqe->res);
}

static void
received(int fd, const struct io_uring_cqe *cqe)
{
    if (cqe->res <= 0) {
        if (cqe->res == -ENOBUFS)
            start_receive(fd);
        else
            close(fd);
        return;
    }
    u32 buffer = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
    /* Clients greet with "*1\r\n$4\r\nPING\r\n". */
    bool ping = input_memory[buffer * INPUT_BYTES + 1] == '1';
    io_uring_buf_ring_add(inputs, input_memory + buffer * INPUT_BYTES, INPUT_BYTES, (u16)buffer,
                          io_uring_buf_ring_mask(INPUTS), 0);
    io_uring_buf_ring_advance(inputs, 1);
    if (ping)
        start_send(fd, "+PONG\r\n", 7);
    else
        start_read(fd);
    if ((cqe->flags & IORING_CQE_F_MORE) == 0) start_receive(fd);
}

static void
read_done(int fd, const struct io_uring_cqe *cqe)
{
    if (cqe->res != (int)read_bytes) die("read");
    start_send(fd, reply, reply_bytes);
}

static void
prepare(const char *path, unsigned value_bytes)
{
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER |
                                              IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE,
                                     .cq_entries = 4 * ENTRIES};
    if (io_uring_queue_init_params(ENTRIES, &ring, &params) != 0) die("io_uring");
    if (io_uring_register_ring_fd(&ring) < 0) die("io_uring_register_ring_fd");

    int file = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    struct stat about;
    if (file < 0 || fstat(file, &about) != 0) die(path);
    places = (u64)about.st_size / read_bytes;
    if (places == 0) die("the file is too small");
    if (io_uring_register_files(&ring, &file, 1) != 0) die("io_uring_register_files");

    size_t bytes = (size_t)DESCRIPTORS_MAX * READ_BYTES_MAX;
    read_memory = memory(bytes);
    struct iovec vector = {.iov_base = read_memory, .iov_len = bytes};
    if (io_uring_register_buffers(&ring, &vector, 1) != 0) die("io_uring_register_buffers");

    input_memory = memory((size_t)INPUTS * INPUT_BYTES);
    inputs = memory(INPUTS * sizeof(struct io_uring_buf));
    struct io_uring_buf_reg registered = {.ring_addr = (u64)(uintptr_t)inputs,
                                          .ring_entries = INPUTS};
    if (io_uring_register_buf_ring(&ring, &registered, 0) != 0) die("io_uring_register_buf_ring");
    for (u32 i = 0; i < INPUTS; i++)
        io_uring_buf_ring_add(inputs, input_memory + i * INPUT_BYTES, INPUT_BYTES, (u16)i,
                              io_uring_buf_ring_mask(INPUTS), (int)i);
    io_uring_buf_ring_advance(inputs, INPUTS);

    reply = memory(value_bytes + 32);
    int head = sprintf(reply, "$%u\r\n", value_bytes);
    memset(reply + head, 'x', value_bytes);
    memcpy(reply + head + value_bytes, "\r\n", 2);
    reply_bytes = (unsigned)head + value_bytes + 2;
}

static int
listen_on(u16 port)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0 ||
        bind(listener, (const struct sockaddr *)&address, sizeof(address)) != 0 ||
        listen(listener, LISTENER_BACKLOG) != 0)
        die("listen");
    return listener;
}

int
main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: bench_read_reply PORT FILE [bytes of a read] [bytes of a value]\n");
        return 1;
    }
    read_bytes = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 4096;
    unsigned value_bytes = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 1024;
    if (read_bytes == 0 || read_bytes > READ_BYTES_MAX || value_bytes > MIB(1)) {
        fprintf(stderr, "bench_read_reply: at most %u bytes of a read\n", READ_BYTES_MAX);
        return 1;
    }
    prng_init(&prng, 1);
    prepare(argv[2], value_bytes);
    int listener = listen_on((u16)strtoul(argv[1], NULL, 10));
    struct io_uring_sqe *sqe = entry();
    io_uring_prep_multishot_accept(sqe, listener, NULL, NULL, SOCK_CLOEXEC);
    tell(sqe, ACCEPTED, listener);
    for (;;) {
        if (io_uring_submit_and_wait(&ring, 1) < 0 && errno != EINTR) die("io_uring");
        u32 head, seen = 0;
        struct io_uring_cqe *cqe;
        io_uring_for_each_cqe(&ring, head, cqe)
        {
            seen++;
            int fd = (int)(u32)cqe->user_data;
            switch ((enum event)(cqe->user_data >> 32)) {
            case ACCEPTED:
                accepted(cqe);
                break;
            case RECEIVED:
                received(fd, cqe);
                break;
            case READ:
                read_done(fd, cqe);
                break;
            case NOT_SENT:
                break; /* receiving says why */
            }
        }
        io_uring_cq_advance(&ring, seen);
    }
}
