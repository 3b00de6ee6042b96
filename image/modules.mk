
ifneq ($(and $(KBUILD_EXTMOD),$(FIRST)),)
override CPP := sh $(dir $(FIRST))exports.sh

# Half of the time that ZFS's modules take goes into the same headers, read anew for every file. They are
# compiled once per module, in advance; where a compiler cannot use that (a file has flags of its own) it
# reads them as they are. Some compilers fail on what they have made, so it is tried out first. In a small
# module it would take longer than it saves.
ifneq ($(and $(word 8,$(real-obj-m)),$(if $(filter %/lua %/zstd,$(obj)),,large)),)
first := $(patsubst $(obj)/%.o,$(obj)/first/%.h.gch,$(filter %.o,$(obj-m)))
# Zstandard and Lua use names that the kernel's headers define.
with-first = $(filter $(obj)/first/$(modname).h,$(if $(filter %.c,$<),$(if $(findstring \
	/zstd/,$<)$(findstring /lua/,$<),,$(basename $(first)))))
NOSTDINC_FLAGS += $(addprefix -include ,$(with-first))
# What is compiled in advance is valid only where the same macros are defined.
override basename_flags := -DKBUILD_BASENAME='"zfs"'

$(real-obj-m): | $(first)
$(first): modname = $(notdir $(basename $(basename $@)))
$(first): part-of-module := y
$(first):
	mkdir -p $(@D)
	cat $(FIRST) $(if $(filter spl,$(modname)),,$(FIRST:.h=-zfs.h)) >$(basename $@)
	for try in 1 2 3; do \
		[ $$try != 1 ] || $(CC) $(c_flags) -x c-header -o $@ $(basename $@); \
		$(CC) -include $(basename $@) $(c_flags) -x c -c -o $@.o /dev/null || rm -f $@; \
	done
	$(CC) -include $(basename $@) $(c_flags) -x c -c -o $@.o /dev/null || : >$(basename $@)
endif
endif

