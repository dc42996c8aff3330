/* SPDX-License-Identifier: MIT
 *
 * fewer.h -- how many seeds or steps a test with a sanitizer takes, and how far these lie apart.
 *
 * AddressSanitizer makes a run four to ten times as slow, and whether a rule or the memory is
 * broken shows in an eighth of them. */
#ifndef DISTKV_TESTS_FEWER_H
#define DISTKV_TESTS_FEWER_H

#ifdef __SANITIZE_ADDRESS__
#define FEWER(count) (((count) + 7) / 8)
#define EVERY(step)  (step)
#else
#define FEWER(count) (count)
#define EVERY(step)  1
#endif

#endif
