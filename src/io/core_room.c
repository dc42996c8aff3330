/* SPDX-License-Identifier: MIT
 *
 * core_room.c -- room for large frames: who has it, who waits for it, and what ends both.
 *
 * A frame of which more than a piece is to come is received into one buffer of its size, which is
 * taken from a budget of such frames before it is read. Where there is no room, the connection is
 * not read; the peer's sends come to a stop, and that is all it notices. Those that wait stand in a
 * queue for each class, and nobody is served before one of its class or of an earlier one: a large
 * frame is not starved by small ones. The queue is looked at when input was given back, in a task,
 * and by a timer, since the memory above this budget is others', who tell nobody.
 *
 * Room comes back when a frame is whole and its session has taken it. So as long as somebody waits,
 * or others of the shard need what large frames have taken (the last eighth of its memory is in
 * use), each client that holds some has to go on: a sixteenth of its frame in three seconds, or its
 * session is told that it holds up others. That ends who sends half a request and then nothing
 * within six seconds, one of many within one or two, and who sends as little as is enough within
 * fifty; a mebibyte may come at 22 KiB/s. Peers are not asked: they have deadlines of their own.
 *
 * A frame may turn out to be longer than its first part said (RESP tells the size of an argument
 * when it comes), and those that wait hold the pieces that had come before. So all that hold room
 * may wait for more. Then the last of them is refused and gives up what it has, until the first has
 * room: any single frame that is allowed fits when all others are gone.
 */
#include "base/fault.h"
#include "io/core_conn.h"

#define ROOM_TICK_NS   (100 * NS_PER_MS)
#define ROOM_LOOK_NS   (3 * NS_PER_S)
#define ROOM_LOOK_PART 16u /* of the frame must come between two looks */
/* When so many were ended already, there are more that do nothing than there is room for, and who
 * goes on waits for all of them: the others have a third of the time, for a third of the bytes. */
#define ROOM_ENDED_MANY 4u
#define ROOM_WAIT_NS    (30 * NS_PER_S)
/* Of the shard's memory one such part is left when there are others. */
#define ROOM_SHARD_PARTS 8u
/* All frames together have one such part of it at most, but for one that is alone: it may be as
 * large as any. Where memory is little, the budget of frames is large enough for that one, and
 * would leave nothing to the store if many shared it. */
#define ROOM_FRAMES_PARTS 4u
/* Who has less is not asked for it. */
#define ROOM_HELD_MIN (16u << 10)
/* So much of a connection's input is that of small requests: a session that does not come round to
 * them is given no more. */
#define ROOM_SMALL_MAX (64u << 10)

static void room_run(struct io_task *task);
static void room_tick(struct io_timer *timer);

void
core_room_init(struct core_net *net)
{
    struct core_room *room = &net->room;
    for (u32 class = 0; class < ROOM_CLASSES; class ++)
        list_init(&room->waiting[class]);
    list_init(&room->holders);
    room->task.run = room_run;
    room->posted = false;
    room->count = 0;
    room->ended = 0;
    io_timer_init(&room->timer, room_tick);
}

static struct io_conn *
room_conn(struct list *link)
{
    return list_entry(link, struct io_conn, room_link);
}

static bool
room_anybody_waits(const struct core_net *net)
{
    return net->shard->stats.connections_waiting > 0;
}

/* Of the memory of the shard, so much may be in use when another frame finds room. */
static u64
room_shard_bytes(const struct core_net *net)
{
    return net->shard->budget.limit_bytes / ROOM_SHARD_PARTS * (ROOM_SHARD_PARTS - 1);
}

/* Bytes that are held of what came, of small and of large frames. */
static u64
room_input(const struct core_net *net)
{
    return net->input_budget.used_bytes + net->frame_budget.used_bytes;
}

bool
core_room_is_ample(const struct core_net *net)
{
    return room_input(net) <= net->input_budget.limit_bytes / 4 &&
           net->shard->budget.used_bytes <= room_shard_bytes(net);
}

/* The timer runs while there is somebody to look after: who waits, and who has memory of large
 * frames. */
static bool
room_wants_watch(const struct core_net *net)
{
    return room_anybody_waits(net) || net->shard->stats.connections_frames != 0;
}

static void
room_watch(struct core_net *net)
{
    if (!net->room.timer.armed) io_timer_arm(&net->room.timer, io_now_ns() + ROOM_TICK_NS);
}

static void
room_unwatch(struct core_net *net)
{
    if (room_wants_watch(net)) return;
    io_timer_cancel(&net->room.timer);
    net->room.ended = 0;
}

/* ---- having room ---- */

static bool
room_has_frame(const struct io_conn *conn)
{
    return conn->input.budget == &conn->net->frame_budget;
}

static void
room_frame_begin(struct io_conn *conn, struct buf frame)
{
    conn->input = frame;
    conn->net->shard->stats.connections_frames++;
    room_watch(conn->net);
}

void
core_room_input_free(struct io_conn *conn)
{
    bool had = room_has_frame(conn);
    buf_deinit(&conn->input);
    buf_init(&conn->input, &conn->net->input_budget);
    if (!had) return;
    conn->net->shard->stats.connections_frames--;
    room_unwatch(conn->net);
}

/* It has memory: conn is among the holders. */
static void
room_hold(struct io_conn *conn)
{
    if (list_linked(&conn->hold_link)) return;
    conn->room_ns = 0;
    list_push_back(&conn->net->room.holders, &conn->hold_link);
}

/* What is held is many pieces, which are not to be of the memory for small requests. */
static void
room_set_aside(struct io_conn *conn)
{
    struct buf *input = &conn->input;
    if (room_has_frame(conn) || input->capacity == 0) return;
    if (!budget_take(&conn->net->frame_budget, input->capacity)) return;
    budget_give(input->budget, input->capacity);
    struct buf frame = *input;
    frame.budget = &conn->net->frame_budget;
    room_frame_begin(conn, frame);
}

bool
core_room_keep(struct io_conn *conn, struct bytes data)
{
    if (conn->input.size + data.size > ROOM_SMALL_MAX) room_set_aside(conn);
    if (!buf_append(&conn->input, data.data, data.size)) return false;
    room_hold(conn);
    /* Where memory is short, the next comes piece by piece. */
    if (!core_room_is_ample(conn->net)) backend_conn_receive_cut(conn);
    return true;
}

void
core_room_freed(struct io_conn *conn)
{
    struct core_net *net = conn->net;
    if (conn->input.capacity == 0) list_del(&conn->hold_link);
    if (!room_anybody_waits(net) || net->room.posted) return;
    net->room.posted = true;
    core_task_post(net->shard, &net->room.task);
}

u64
core_room_trim(struct io_conn *conn)
{
    u64 before = conn->input.capacity;
    buf_trim(&conn->input, conn->want_bytes - MIN(conn->want_bytes, conn->input.size));
    return before - conn->input.capacity;
}

/* It has room for the frame at the front. */
static void
room_had(struct io_conn *conn)
{
    if (!conn->room_had) conn->net->room.count++;
    conn->room_had = true;
}

void
core_room_done(struct io_conn *conn)
{
    conn->room_had = false;
    conn->net->room.count--;
}

void
core_room_starved(struct io_conn *conn)
{
    MARK("io.conn.starved");
    conn->net->shard->stats.connections_starved++;
    if (conn->state == CONN_OPEN && conn->events->crowded != NULL)
        conn->events->crowded(conn, IO_CROWD_GIVES_UP, buf_bytes(&conn->input));
}

static u64
room_needed(const struct io_conn *conn)
{
    return conn->want_bytes - MIN(conn->want_bytes, conn->input.capacity);
}

/* Of the budget for input the last eighth is for the ends of small requests, and for peers; and of
 * the memory of the shard some is for the requests themselves and for what others send; but one
 * always goes on.
 */
static bool
room_fits(const struct io_conn *conn)
{
    const struct core_net *net = conn->net;
    u64 needed = room_needed(conn), limit = net->frame_budget.limit_bytes;
    if (!conn->events->first) limit = limit / 8 * 7;
    if (room_input(net) + needed > limit) return false;
    if (net->room.count == conn->room_had) return true; /* alone */
    if (net->shard->budget.used_bytes + needed > room_shard_bytes(net)) return false;
    u64 frames = net->shard->budget.limit_bytes / ROOM_FRAMES_PARTS;
    return conn->events->first || net->frame_budget.used_bytes + needed <= frames;
}

/* What came before is moved to the memory of large frames. */
static bool
room_reserve(struct io_conn *conn, bool roomy)
{
    struct buf *input = &conn->input;
    size_t extra = conn->want_bytes - input->size;
    if (room_has_frame(conn))
        return (roomy && buf_reserve(input, extra)) || buf_reserve_close(input, extra);
    struct buf frame;
    buf_init(&frame, &conn->net->frame_budget);
    if (!(roomy && buf_reserve(&frame, conn->want_bytes)) &&
        !buf_reserve_close(&frame, conn->want_bytes))
        return false;
    bool moved = buf_append(&frame, input->data, input->size);
    CHECK(moved);
    buf_deinit(input);
    room_frame_begin(conn, frame);
    return true;
}

static bool
room_take(struct io_conn *conn)
{
    if (!room_fits(conn)) return false;
    struct core_net *net = conn->net;
    /* A frame that grows is copied less often with some to spare; where there is less, more of them
     * find room without. */
    if (!room_reserve(conn,
                      room_input(net) + conn->want_bytes <= net->frame_budget.limit_bytes / 2))
        return false;
    room_had(conn);
    room_hold(conn);
    return true;
}

/* ---- waiting for it ---- */

static enum room_class
room_class(const struct io_conn *conn)
{
    if (conn->events->first) return ROOM_FIRST;
    return conn->room_had ? ROOM_GROWS : ROOM_NEW;
}

/* Whether somebody stands in the queue before one who comes now. */
static bool
room_behind_others(struct core_room *room, enum room_class class)
{
    for (u32 i = 0; i <= class; i++) {
        if (!list_empty(&room->waiting[i])) return true;
    }
    return false;
}

static void
room_wait(struct io_conn *conn, enum room_class class)
{
    MARK("io.room.waits");
    struct core_net *net = conn->net;
    net->shard->stats.connections_waiting++;
    room_watch(net);
    list_push_back(&net->room.waiting[class], &conn->room_link);
    conn->paused |= CONN_PAUSED_ROOM;
    room_set_aside(conn);
    conn->room_ns = io_now_ns();
    if (conn->events->crowded != NULL)
        conn->events->crowded(conn, IO_CROWD_WAITS, buf_bytes(&conn->input));
}

void
core_room_leave(struct io_conn *conn)
{
    if (!list_linked(&conn->room_link)) return;
    struct core_net *net = conn->net;
    list_del(&conn->room_link);
    conn->paused &= (u8)~CONN_PAUSED_ROOM;
    conn->room_ns = 0;
    net->shard->stats.connections_waiting--;
    room_unwatch(net);
    core_room_freed(conn); /* of its place */
}

bool
core_conn_direct_reserve(struct io_conn *conn)
{
    if (conn->want_bytes <= conn->input.capacity) {
        /* What came at once has it whole, or the frame before has left it. */
        if (room_has_frame(conn)) room_had(conn);
        return true;
    }
    if (list_linked(&conn->room_link)) return false;
    enum room_class class = room_class(conn);
    bool waits = room_behind_others(&conn->net->room, class) || BUGGIFY("io.room.full");
    if (!waits && room_take(conn)) return true;
    /* What still came to a session that has said stop waits where it lies. */
    if (conn->paused == 0) room_wait(conn, class);
    return false;
}

bool
io_conn_waits_for_room(const struct io_conn *conn)
{
    return list_linked(&conn->room_link);
}

static struct io_conn *
room_front(struct core_room *room)
{
    for (u32 class = 0; class < ROOM_CLASSES; class ++) {
        struct list *link = list_first(&room->waiting[class]);
        if (link != NULL) return room_conn(link);
    }
    return NULL;
}

/* Who gives way to front: the last of those that have room, or of all. */
static struct io_conn *
room_last(struct core_room *room, const struct io_conn *front)
{
    static const enum room_class order[ROOM_CLASSES] = {ROOM_GROWS, ROOM_NEW, ROOM_FIRST};
    for (u32 i = 0; i < ROOM_CLASSES; i++) {
        struct list *waiting = &room->waiting[order[i]];
        if (!list_empty(waiting) && room_conn(waiting->prev) != front)
            return room_conn(waiting->prev);
    }
    return NULL;
}

static void
room_serve(struct core_net *net)
{
    struct io_conn *conn;
    while ((conn = room_front(&net->room)) != NULL && room_take(conn)) {
        core_room_leave(conn);
        io_conn_again(conn);
    }
}

static void
room_run(struct io_task *task)
{
    struct core_net *net = CONTAINER_OF(task, struct core_net, room.task);
    net->room.posted = false;
    room_serve(net);
}

/* ---- what ends it ---- */

/* Its session has the last word. */
static void
room_refuse(struct io_conn *conn)
{
    core_room_starved(conn);
    if (list_linked(&conn->room_link)) core_conn_shut(conn, ST_NO_MEMORY);
}

static void
room_expire(struct core_room *room)
{
    for (u32 class = 0; class < ROOM_CLASSES; class ++) {
        struct list *link;
        while ((link = list_first(&room->waiting[class])) != NULL) {
            struct io_conn *conn = room_conn(link);
            if (io_now_ns() - conn->room_ns <= ROOM_WAIT_NS) break;
            MARK("io.room.waited_too_long");
            room_refuse(conn);
        }
    }
}

/* Whether a holder does nothing for its frame. The kernel is asked, which may have more than came
 * here. What lies here unread is not the peer's fault. */
static bool
room_holds_up(struct io_conn *conn)
{
    u64 now_ns = io_now_ns(), parts = conn->net->room.ended >= ROOM_ENDED_MANY ? 3 : 1;
    if (conn->room_ns != 0 && now_ns - conn->room_ns < ROOM_LOOK_NS / parts) return false;
    u64 arrived = io_conn_arrived(conn);
    u64 enough = MAX(conn->want_bytes / (ROOM_LOOK_PART * parts), 1u);
    bool here = arrived >= conn->received - conn->input.size + conn->want_bytes;
    bool unread = arrived > conn->received;
    bool late = conn->room_ns != 0 && arrived - conn->room_arrived < enough && !here && !unread;
    conn->room_ns = now_ns;
    conn->room_arrived = arrived;
    return late;
}

static void
room_holder_end(struct io_conn *conn)
{
    MARK("io.room.held_up");
    conn->net->room.ended++;
    conn->events->crowded(conn, IO_CROWD_HOLDS_UP, buf_bytes(&conn->input));
}

/* Ends holders, who has it longest first, until there would be room for needed bytes. False:
 * everybody who has room waits for more. */
static bool
room_call_in(struct core_net *net, u64 needed)
{
    u64 freed = 0;
    bool others = false;
    list_for_each_safe (link, &net->room.holders) {
        struct io_conn *conn = list_entry(link, struct io_conn, hold_link);
        if (list_linked(&conn->room_link)) continue;
        others = true;
        if (!backend_conn_input_busy(conn) && !conn->giving) freed += core_room_trim(conn);
        u64 held = conn->input.capacity;
        bool whole = conn->paused == 0 && conn->input.size >= conn->want_bytes;
        if (conn->state != CONN_OPEN || whole || held < ROOM_HELD_MIN) continue;
        if (conn->events->crowded == NULL) continue;
        if (!room_holds_up(conn)) continue;
        room_holder_end(conn);
        if (conn->state != CONN_OPEN) freed += held;
        if (freed >= needed) break;
    }
    return others;
}

static bool
room_check(struct core_net *net)
{
    u64 waiting = 0, held = 0;
    for (u32 class = 0; class < ROOM_CLASSES; class ++) {
        list_for_each (link, &net->room.waiting[class]) {
            const struct io_conn *conn = room_conn(link);
            if (conn->state != CONN_OPEN || conn->paused != CONN_PAUSED_ROOM) return false;
            waiting++;
        }
    }
    list_for_each (link, &net->room.holders)
        held += list_entry(link, struct io_conn, hold_link)->input.capacity;
    return waiting == net->shard->stats.connections_waiting && held <= room_input(net) &&
           room_wants_watch(net) == net->room.timer.armed;
}

static void
room_tick(struct io_timer *timer)
{
    struct core_net *net = CONTAINER_OF(timer, struct core_net, room.timer);
    struct core_room *room = &net->room;
    io_timer_arm(timer, io_now_ns() + ROOM_TICK_NS);
    room_serve(net);
    room_expire(room);
    struct io_conn *front = room_front(room);
    u64 used = net->shard->budget.used_bytes, most = room_shard_bytes(net);
    if (front == NULL && used <= most) room->ended = 0;
    if (front == NULL && used > most) (void)!room_call_in(net, used - most);
    if (front != NULL && !room_call_in(net, room_needed(front))) {
        struct io_conn *last;
        while (!room_fits(front) && (last = room_last(room, front)) != NULL) {
            MARK("io.room.all_wait");
            room_refuse(last);
        }
    }
    room_unwatch(net);
    AUDIT("io.room.checked", room_check(net));
}
