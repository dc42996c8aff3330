/* SPDX-License-Identifier: MIT
 *
 * fault.h -- places where the simulator may make a rare path common, places that it must reach, and
 * places where it checks whole structures, once in so many passes.
 *
 *     if (BUGGIFY("lsm.memtable.tiny")) ...      after FoundationDB's flow/Buggify.h
 *     MARK("lsm.log.tail_cut");                  after TigerBeetle's testing/marks.zig
 *     return MARKED("lsm.log.full", ST_NO_SPACE);    a mark on the way out
 *     AUDIT("lsm.memtable.insert", memtable_check(memtable));    a check of a whole structure
 *
 * Names are stable, layer.noun.what, and each stands in one place only (tools/tidy), so a mark that
 * was never passed names the line that no test has seen.
 *
 * Each use leaves one constant record in a section of its own, which the linker puts side by side:
 * so all sites of a program can be listed, also those that were never passed. A record holds its
 * name itself: it needs no relocation, lies in read-only memory, and costs the server nothing but
 * its bytes on disk. What a site does is resolved at link time. In the server (fault_none.c):
 *   MARK     a call of an empty function that the compiler is told is cold. So it moves the branch
 *            out of the way of what is likely; for that reason marks stand on rare paths only.
 *   BUGGIFY, AUDIT  an instruction that does nothing: nothing is loaded, compared or called.
 *
 * Where that instruction stands is noted in one more section. A test program that wants its sites
 * to fire puts a jump in its place, in its own copy of the code in memory (io/sim_sites.c), as the
 * kernel does with its static keys. The objects are the same for both.
 */
#ifndef DISTKV_BASE_FAULT_H
#define DISTKV_BASE_FAULT_H

#include "base/types.h"

enum fault_kind { FAULT_MARK, FAULT_BUGGIFY, FAULT_AUDIT };

#define FAULT_NAME_BYTES 63u

/* The size is the alignment, so that records lie in the section without gaps between objects. */
struct fault_site {
    char name[FAULT_NAME_BYTES]; /* ends with a zero */
    u8 kind;
} ALIGNED(64);
static_assert(sizeof(struct fault_site) == 64, "the linker's array has this stride");

/* No redzones: sanitizers leave variables in named sections alone (GCC, and Clang for names that
 * are identifiers), and test_fault.c sees to it that the array stays one. */
#define FAULT_SITE(site_kind, site_name)                                                           \
    static_assert(sizeof(site_name) <= FAULT_NAME_BYTES, "a shorter name");                        \
    static const struct fault_site fault_site_                                                     \
        __attribute__((section("fault_sites"))) = {.name = site_name, .kind = site_kind}

/* What the link brings: fault_none.c or the simulator's. */
bool fault_buggify(const struct fault_site *site) __attribute__((cold));
bool fault_audit(const struct fault_site *site) __attribute__((cold));
void fault_mark(const struct fault_site *site) __attribute__((cold));

/* An instruction that may become a jump, and to where: distances from the fields themselves. */
struct fault_jump {
    i32 code, target;
};

#if defined(__x86_64__)
#define FAULT_NOP ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00" /* as long as a jump to anywhere */
#elif defined(__aarch64__)
#define FAULT_NOP "nop"
#else
#error "src/io/sim_sites.c has to know the jumps of this processor"
#endif

/* Goes to armed once a program has armed its sites. */
#define FAULT_GO_WHEN_ARMED(armed)                                                                 \
    __asm__ goto("1: " FAULT_NOP "\n"                                                              \
                 "\t.pushsection fault_jumps, \"a\"\n"                                             \
                 "\t.balign 4\n"                                                                   \
                 "\t.long 1b - ., %l[" #armed "] - .\n"                                            \
                 "\t.popsection"                                                                   \
                 :                                                                                 \
                 :                                                                                 \
                 :                                                                                 \
                 : armed)

#define BUGGIFY(site_name)                                                                         \
    __extension__({                                                                                \
        __label__ fault_armed_;                                                                    \
        FAULT_SITE(FAULT_BUGGIFY, site_name);                                                      \
        bool fault_fires_ = false;                                                                 \
        FAULT_GO_WHEN_ARMED(fault_armed_);                                                         \
        if (false) {                                                                               \
        fault_armed_:                                                                              \
            fault_fires_ = fault_buggify(&fault_site_);                                            \
        }                                                                                          \
        fault_fires_;                                                                              \
    })

/* The condition may walk far: it is for the passes that the simulator picks. */
#define AUDIT(site_name, condition)                                                                \
    do {                                                                                           \
        __label__ fault_armed_;                                                                    \
        FAULT_SITE(FAULT_AUDIT, site_name);                                                        \
        FAULT_GO_WHEN_ARMED(fault_armed_);                                                         \
        if (false) {                                                                               \
        fault_armed_:                                                                              \
            if (fault_audit(&fault_site_)) CHECK(condition);                                       \
        }                                                                                          \
    } while (0)

#define MARK(site_name)                                                                            \
    do {                                                                                           \
        FAULT_SITE(FAULT_MARK, site_name);                                                         \
        fault_mark(&fault_site_);                                                                  \
    } while (0)

/* Passes the mark and is value. */
#define MARKED(site_name, value)                                                                   \
    __extension__({                                                                                \
        MARK(site_name);                                                                           \
        (value);                                                                                   \
    })

#endif
