# SPDX-License-Identifier: MIT
# The simulated link: the same headers as distkv_io_ring, an allocator by node, fault injection and
# the log's sink, so a test links this and neither distkv_mem nor distkv_fault_none.
add_library(distkv_io_sim STATIC sim.c sim_conn.c sim_damage.c sim_deflate.c sim_disk.c
  sim_fault.c sim_file.c sim_inject.c sim_line.c sim_log.c sim_mem.c sim_names.c
  sim_options.c sim_sites.c sim_trace.c)
target_link_libraries(distkv_io_sim PUBLIC distkv_io distkv_base PRIVATE PkgConfig::ISAL)
# Lower layers ask for these after the library that has them was searched; isa-l asks for the last.
target_link_options(distkv_io_sim INTERFACE LINKER:--undefined=mem_raw_alloc
  LINKER:--undefined=fault_buggify LINKER:--undefined=log_emit
  LINKER:--undefined=encode_deflate_icf)
