/* SPDX-License-Identifier: MIT
 *
 * unsynced.c -- linked into distkv-server-unsynced: the server as it is, but its log leaves the
 * sync out (by the linker, --wrap). Tables, manifests and directories are synced as ever, so what
 * is lost is what the log promised. The power-cut test must fail this program; if it does not, the
 * rig loses nothing and proves nothing.
 */
#include "io/file.h"

status __real_io_file_write(struct io_file *file, enum io_class class, const void *buffer, u32 size,
                            u64 offset, bool durable);
status __wrap_io_file_write(struct io_file *file, enum io_class class, const void *buffer, u32 size,
                            u64 offset, bool durable);
void __real_io_file_write_start(struct io_file *file, struct io_op *op, enum io_class class,
                                const void *buffer, u32 size, u64 offset, bool durable);
void __wrap_io_file_write_start(struct io_file *file, struct io_op *op, enum io_class class,
                                const void *buffer, u32 size, u64 offset, bool durable);

status
__wrap_io_file_write(struct io_file *file, enum io_class class, const void *buffer, u32 size,
                     u64 offset, bool durable)
{
    return __real_io_file_write(file, class, buffer, size, offset,
                                durable && class != IO_CLASS_LOG);
}

void
__wrap_io_file_write_start(struct io_file *file, struct io_op *op, enum io_class class,
                           const void *buffer, u32 size, u64 offset, bool durable)
{
    __real_io_file_write_start(file, op, class, buffer, size, offset,
                               durable && class != IO_CLASS_LOG);
}
